"""All studies through all networks within the time limit, and the files this leaves."""
