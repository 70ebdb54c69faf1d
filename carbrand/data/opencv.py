"""OpenCV as carbrand uses it: import `cv2` from here.

One thread a call, as calls run side by side already: more cost 10 to 20 % more CPU time. And without Intel's IPP, by
which OpenCV rounds otherwise on each kind of processor, so that a dataset's bytes would depend on the machine.
"""

import cv2

__all__ = ["cv2"]

cv2.setNumThreads(1)
cv2.ipp.setUseIPP(False)
