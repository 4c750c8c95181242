"""Upload, push, wait and submit through Kaggle's own client; none of this runs on Kaggle."""
