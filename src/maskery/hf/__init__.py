"""What people use with Hugging Face's Transformers."""
