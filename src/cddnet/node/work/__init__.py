"""Complete series are decided on, checked and denoised."""
