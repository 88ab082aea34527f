"""Starting victims (test/victims) on a host and asking them how it went."""
import os

from bed import BUILD, TOP, wait_for

INTERPRETERS = {".py": "/usr/bin/python3", ".pl": "/usr/bin/perl"}


class Victim:
    def __init__(self, c, name, host, args=(), uid=None, tag=""):
        self.c, self.name = c, name
        self.dir = os.path.join(c.dir, "victim-%s%s" % (name, tag))
        os.makedirs(self.dir)
        os.chmod(self.dir, 0o777)
        ext = os.path.splitext(name)[1]
        if ext:
            cmd = [INTERPRETERS[ext], os.path.join(TOP, "test/victims", name), self.dir]
        else:
            cmd = [os.path.join(BUILD, "victims", name), self.dir]
        self.pid = c[host].daemon(cmd + list(args), uid=uid, stdout="/dev/null")
        wait_for(lambda: self.read("ready") or self.read("result"), 30)
        if not self.read("ready"):
            raise RuntimeError("%s: %s" % (name, self.read("result")))

    def read(self, what):
        try:
            return open(os.path.join(self.dir, what)).read()
        except FileNotFoundError:
            return ""

    def steps(self):
        return int(self.read("steps") or 0)

    def goes_on(self, seconds=20):
        """It works: its steps grow."""
        n = self.steps()
        wait_for(lambda: self.steps() > n or self.read("result"), seconds)
        return not self.read("result")

    def finish(self, seconds=60):
        """Tells it to stop; its verdict."""
        open(os.path.join(self.dir, "stop"), "w").close()
        try:
            wait_for(lambda: self.read("result"), seconds)
        except TimeoutError:
            return "no result"
        return self.read("result")
