"""Where endpoints come from: ``base`` states the interface, each other module is one source."""

from tierline.router.discovery.base import Discovery, Source
from tierline.router.discovery.file import FileSource
from tierline.router.discovery.static import StaticSource

__all__ = ["Discovery", "FileSource", "Source", "StaticSource"]
