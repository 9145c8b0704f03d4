"""What was made and from what: sessions, prompts, images, uploads."""
