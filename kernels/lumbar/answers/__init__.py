"""Network outputs → landmarks in patient mm, logits by row, and the ensemble's 25 rows."""
