"""Says what a process of the fork server has imported: all that one of the system begins with."""

import sys

if __name__ == "__main__":
    sys.stdout.write("\n".join(sys.modules))
