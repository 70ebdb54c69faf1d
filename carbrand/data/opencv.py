"""OpenCV as carbrand uses it: import `cv2` from here.

One thread a call, as calls run side by side already: more cost 10 to 20 % more CPU time.
"""

import cv2

__all__ = ["cv2"]

cv2.setNumThreads(1)
