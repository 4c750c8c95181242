"""Runtime of the kit: DICOM studies in, 25 probability rows a study out.

study folder ─ dicom ─▶ stacks ─ geometry ─▶ views ─ locate ─▶ landmarks (patient mm) ─ views ─▶ crops ─ grade ─▶
member rows ─ ensemble ─▶ 25 rows ─ submission ─▶ submission.csv

Imports only what Kaggle's image holds: the standard library, numpy, cv2, pydicom, torch, pydantic, tqdm.
"""
