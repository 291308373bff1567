// All kernels as one capability of a CPU compiles them. Whoever includes this has named it in
// CAPABILITY and told the compiler what it may use. Standard headers come with kernels.h, before
// that: their inline functions are shared by all files, and have to run on every CPU.

#include "numeric.h"
#include "philox.h"
#include "tile.h"
#include "activate.h"
#include "sampler_update.h"
#include "perturb.h"
#include "dsm_loss.h"
#include "residual_add.h"
#include "instance_norm.h"
#include "max_pool5.h"
#include "resize_add.h"
#include "winograd.h"
#include "winograd_gradient.h"
#include "fingerprint.h"

#define NCSN_FAST_TEXT(name) #name
#define NCSN_FAST_NAME(name) NCSN_FAST_TEXT(name)

namespace ncsn_fast {
namespace CAPABILITY {

extern const Table table = {
    NCSN_FAST_NAME(CAPABILITY),
    words,
    normal,
    uniform,
    sampler_update,
    perturb,
    dsm_loss,
    activate,
    activate_backward,
    residual_add,
    norm_moments,
    norm_coefficients,
    norm_apply,
    norm_sums,
    norm_slopes,
    norm_backward,
    max_pool5,
    max_pool5_backward,
    resize_add,
    resize_backward,
    ROWS,
    conv_weight,
    conv_input,
    conv_panel,
    conv_gradient_group,
    conv_gradient_sums,
    conv_gradient_out,
    fingerprint,
};

}  // namespace CAPABILITY
}  // namespace ncsn_fast
