"""The Streamlit playground: generate, search, look back, run batches, through the client alone."""
