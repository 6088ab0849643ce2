"""Messages in, text out: templates and the output grammar."""
