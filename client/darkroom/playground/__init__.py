"""The Streamlit playground: generate, search, browse and run batches, through the client alone."""
