// The kernels for one instruction set; compiled once for each, with CTLOSS_ISA naming it.
#include "classes.h"
#include "contrast.h"
#include "sigmoid.h"

namespace ctloss {
namespace CTLOSS_ISA {

Status solve_contrast(const Problem& problem) {
    Contrast contrast(problem);
    return contrast.solve();
}

int64_t size_of_contrast(const Problem& problem) { return Contrast(problem).size(); }
Status solve_classes(const Classes& problem) {
    ClassLoss loss(problem);
    return loss.solve();
}

Status solve_sigmoid(const Sigmoid& problem) {
    SigmoidLoss loss(problem);
    return loss.solve();
}

}  // namespace CTLOSS_ISA
}  // namespace ctloss
