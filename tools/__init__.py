"""What is run by hand beside train.py."""
