"""SPIDER (van der Graaf et al., Scientific Data 2024), lumbar MR with masks, as data in the competition's layout."""
