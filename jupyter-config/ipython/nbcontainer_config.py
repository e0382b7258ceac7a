"""Settings for a whole environment: installed as etc/ipython/nbcontainer_config.py, and inactive until it is asked for.

Nothing is needed to use nbcontainer beyond ``%load_ext nbcontainer``. To load it in every kernel of an environment
(a class room, a hub), make ``etc/ipython/ipython_config.py`` below ``sys.prefix`` with these lines, or add them to it:

    import sys

    load_subconfig("nbcontainer_config.py", path=f"{sys.prefix}/etc/ipython")

What stands behind a # below is the default; a copy of this file is the place for other values.
"""

c = get_config()

c.InteractiveShellApp.extensions.append("nbcontainer")

# The image of a bare %%container.
# c.ContainerMagics.default_image = "host"

# A registry of one's own in front of Docker Hub: a class room pulls each image once.
# c.ContainerMagics.mirrors = {"docker.io": ["https://mirror.example"]}

# Where images and containers are kept.
# c.ContainerMagics.root = "/srv/nbcontainer"

# Bytes of each stream shown below a cell; 0 is no limit.
# c.ContainerMagics.output_limit = 10_000_000
