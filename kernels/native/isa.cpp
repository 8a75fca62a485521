// The kernels for one instruction set; compiled once for each, with CTLOSS_ISA naming it.
#include "contrast.h"

namespace ctloss {
namespace CTLOSS_ISA {

Status solve_contrast(const Problem& problem) {
    Contrast contrast(problem);
    return contrast.solve();
}

int64_t size_of_contrast(const Problem& problem) { return Contrast(problem).size(); }

}  // namespace CTLOSS_ISA
}  // namespace ctloss
