# What augmentation for models from random weights does to grey values, and what a detector does to
# them: two dicts for the list of a data set, whose phrases decide what may happen to geometry.
_grey_values = dict(gamma=(0.6, 1.6), contrast=(0.65, 1.5), brightness=(0.75, 1.3), p=0.5)
_detector = dict(low_resolution=(0.5, 1.0), blur=(0.3, 1.5), noise=(1, 10), p=0.2)
