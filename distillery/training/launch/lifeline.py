"""A process that does not outlive its parent, however that ends."""

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_CHECK_S = 1.0


def end_with_parent(parent_pid: int) -> None:
    """Have this process killed once its parent is gone, even by SIGKILL.

    A parent that is killed cannot stop its children, and processes that train for nobody would
    hold the GPUs and write the checkpoints of the next attempt. Linux is asked to do it; elsewhere
    a thread looks every second.

    Args:
        parent_pid: Process id of the parent, told by itself: asked for here, it could be that of
            whoever took over the children of a parent that is dead already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch, args=(parent_pid,), name="lifeline", daemon=True).start()


def _watch(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_CHECK_S)
    os.kill(os.getpid(), signal.SIGKILL)
