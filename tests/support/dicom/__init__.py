"""Series that the phantom does not have, written as DICOM."""
