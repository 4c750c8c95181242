"""From labelled DICOM studies to TorchScript weights, out-of-fold scores and a manifest.  Uses kernels.lumbar."""
