"""What is on the disk: images, and the journal of what became of them."""
