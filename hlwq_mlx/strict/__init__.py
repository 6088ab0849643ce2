"""What a stranger's file says, read with suspicion: JSON and the numbers in it."""
