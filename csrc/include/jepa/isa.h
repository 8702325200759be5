// Which instruction set the CPU kernels use: found by cpuid once, and lowered by tests to exercise every level.
#pragma once

namespace jepa {

enum class Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

Isa detected_isa();            // the best level that this processor and this build have
Isa active_isa();              // what kernels dispatch on: detected, unless limited
void limit_isa(Isa highest);   // never raises above detected_isa()
const char* name_of(Isa isa);

}  // namespace jepa
