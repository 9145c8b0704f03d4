"""Work on jobs in nobody's hands: the dispatcher, its duties, and what these are made of."""
