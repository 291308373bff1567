// The kernels for any CPU.
#include "kernels.h"

#define CAPABILITY plain
#include "table.h"
