"""What images are built with, and what containers are started with."""
