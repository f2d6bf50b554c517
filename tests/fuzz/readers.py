"""Every reader of files that strangers may have made."""

from tests.fuzz.data_readers import DATA_READERS
from tests.fuzz.run_readers import RUN_READERS

READERS = (*DATA_READERS, *RUN_READERS)
