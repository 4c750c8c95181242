"""Building blocks of architectures: encoders, heads, pooling, sequence models, published weights."""
