"""Everything that talks to Kaggle, through its own client: upload, push, wait, submit; nothing of it runs on Kaggle."""
