"""Names by which the layouts of data sets on disk are recognised."""

LAYOUT = "expected SITE/train/CLASS/*.png and SITE/test/CLASS/*.png (SITE/validation/ is optional)"
"""Of images in folders, for errors."""
IMAGE_FOLDERS = ("ISIC_2019_Training_Input_preprocessed", "ISIC_2019_Training_Input")
"""Of FedISIC2019: FLamby's, and ISIC's own."""
SAVED = ("dataset_dict.json", "state.json")
"""Files that `save_to_disk` of the `datasets` library writes."""
