"""What can be read off the weights alone, once everything that doesn't change the function is out of them."""
