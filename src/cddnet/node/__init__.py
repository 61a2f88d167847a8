"""The DICOM node: receive, decide, denoise, send; nothing that was accepted is lost."""
