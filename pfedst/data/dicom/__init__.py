"""DICOM files as images (pydicom is an extra)."""
