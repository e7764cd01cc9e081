"""What the API takes and answers: what checks input, writes output, and documents both."""
