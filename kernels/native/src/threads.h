// Work shared among threads that are kept between calls.
#pragma once

namespace ctloss {

using Work = void (*)(void* context, int part);

// Call work(context, 0) … work(context, parts − 1), on this thread and parts − 1 others. Another caller at the same
// time, or one whose threads could not be started, does all parts itself, one after the other.
void share(int parts, Work work, void* context);

// Memory of this thread that stays between calls while it is small, so that small batches touch no fresh pages.
// Null if there is none. Valid until the next call on this thread.
void* scratch(unsigned long bytes);
// Return what is too large to be kept.
void release_scratch();

}  // namespace ctloss
