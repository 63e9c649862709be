// How the program ends when the system ends it: without its temporary files, and with a reason where there is
// one.
#pragma once

namespace verify {

/// From now on, SIGINT and its like remove the files that are being written before they end the program; a
/// checkpoint that becomes shorter while it is read (SIGBUS) ends it with a message and exit status 2; a file
/// over the limit on file sizes is an error of writing. What the caller ignores, as nohup does, stays
/// ignored.
void install_signal_handlers();

}  // namespace verify
