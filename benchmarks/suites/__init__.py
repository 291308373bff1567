"""What is measured, a suite each."""
