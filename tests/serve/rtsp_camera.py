"""A camera that serves RTSP: GStreamer's own server with a moving test picture. Run by a Python that has `gi`.

python3 rtsp_camera.py PORT       rtsp://127.0.0.1:PORT/camera, H.264, 64x48, 15 frames a second
"""

import sys

import gi

gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PICTURE = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=64,height=48,framerate=15/1 "
    "! x264enc tune=zerolatency key-int-max=15 ! rtph264pay name=pay0 pt=96 )"
)

Gst.init(None)
server = GstRtspServer.RTSPServer(service=sys.argv[1], address="127.0.0.1")
factory = GstRtspServer.RTSPMediaFactory(launch=PICTURE, shared=True)
server.get_mount_points().add_factory("/camera", factory)
assert server.attach(None), "the port is taken"
print("serving", flush=True)
GLib.MainLoop().run()
