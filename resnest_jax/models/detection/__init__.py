"""Operations of two-stage detectors: functions of arrays, of one image unless they say otherwise.

All shapes are static, so that the functions work under ``jit`` and, for a batch, under ``vmap``.
Arrays of a varying number of entries are padded, and a mask ``valid`` says which entries count.
Boxes are (x0, y0, x1, y1) in pixels: a box around the whole pixels i to j spans i to j + 1.
They compute what the authors' fork of detectron2 does. ``rcnn`` joins them with the modules of
``fpn``, ``rpn``, ``roi_heads`` and ``mask_head``, for a batch.
"""
