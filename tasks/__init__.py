"""Thin Prefect wrappers: each calls one function of the library and returns refs.

Library modules that bring pandas or torch are imported inside the tasks: a flow has to load fast.
"""

from distillery.teacher.http.keys import register_secret_reader
from tasks.secrets import read_secret

# Whatever task runs first in a process, a teacher's key may be a Prefect secret.
register_secret_reader(read_secret)
