// variant.cpp: all kernels for one instruction set. Compiled once per set with its flags and GEMMANTLE_ISA_NAME.
//
// Exports kernels_<name>() and nothing else: a shared inline function compiled here with wide instructions could be
// linked into code that runs on machines without them. So: unnamed namespaces, no STL, nothing of csrc.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/coded.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/embed.h"
#include "kernels/cpu/halves.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/moe.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/pages.h"
#include "kernels/cpu/peak.h"
#include "kernels/cpu/rope.h"

#define GEMMANTLE_JOIN_(a, b) a##b
#define GEMMANTLE_JOIN(a, b) GEMMANTLE_JOIN_(a, b)
#define GEMMANTLE_STRING_(a) #a
#define GEMMANTLE_STRING(a) GEMMANTLE_STRING_(a)

namespace gemmantle::cpu {
namespace {

constexpr CpuKernels kTable = {
    .name = GEMMANTLE_STRING(GEMMANTLE_ISA_NAME),
    .lanes = kLanes,
    .linear_scratch = linear_scratch,
    .linear = linear,
    .coded = kCoded,
    .halves = kHalves,
    .peaks = &kPeaks,
    .embed = embed,
    .rms_norm = rms_norm,
    .add = add,
    .scale = scale,
    .gelu_mul = gelu_mul,
    .softcap = softcap,
    .is_finite = is_finite,
    .rope_turns = rope_turns,
    .rope = rope,
    .attend = attend,
    .attend_merge = attend_merge,
    .attend_finish = attend_finish,
    .pages = &kPageKernels,
    .route = route,
};

}  // namespace

const CpuKernels* GEMMANTLE_JOIN(kernels_, GEMMANTLE_ISA_NAME)() noexcept { return &kTable; }

}  // namespace gemmantle::cpu
