"""Other annotations of boxes, written in COCO's form."""
