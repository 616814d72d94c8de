"""What is measured of draws and codes after training: numbers, and verdicts in words."""
