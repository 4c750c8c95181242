"""What several architectures are made of: encoders, heads, pools, sequences, published weights."""
