/* A pretended libnvidia-ml.so.1 with one board, for tests of whole commands.
 *
 * FAKE_NVML_INIT, FAKE_NVML_ENERGY, FAKE_NVML_POWER: return codes of nvmlInit, of the energy counter and of every power
 * reading. FAKE_NVML_MIG=1: the board is split into instances. FAKE_NVML_RESET=1: the counter falls after a second.
 * The board draws 300 W; its counter is refreshed every 100 ms of the monotonic clock. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6 };
static const double watts = 300.0, update_s = 0.1;
static const char *const uuid = "GPU-11111111-2222-3333-4444-555555555555";

typedef struct board *nvml_device;
static char board_memory;
static double begin_s;

/* As in nvml.h. */
struct field_value {
    unsigned field, scope;
    long long timestamp, latency;
    int type, code;
    union { double d; unsigned long long u; } value;
};

static int setting(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : 0;
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static int write_text(char *buffer, unsigned size, const char *text) {
    snprintf(buffer, size, "%s", text);
    return 0;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    begin_s = now_s();
    return setting("FAKE_NVML_INIT");
}

int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code ? "pretended error" : "success"; }
int nvmlSystemGetDriverVersion(char *buffer, unsigned size) { return write_text(buffer, size, "999.01"); }
int nvmlDeviceGetName(nvml_device d, char *buffer, unsigned size) { (void)d; return write_text(buffer, size, "Pretended GPU"); }
int nvmlDeviceGetUUID(nvml_device d, char *buffer, unsigned size) { (void)d; return write_text(buffer, size, uuid); }

int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, nvml_device *device) {
    *device = (nvml_device)(void *)&board_memory;
    return index ? INVALID_ARGUMENT : 0;
}

int nvmlDeviceGetHandleByUUID(const char *wanted, nvml_device *device) {
    *device = (nvml_device)(void *)&board_memory;
    return strcmp(wanted, uuid) ? NOT_FOUND : 0;
}

int nvmlDeviceGetMigMode(nvml_device d, unsigned *current, unsigned *pending) {
    (void)d;
    *current = *pending = (unsigned)setting("FAKE_NVML_MIG");
    return 0;
}

int nvmlDeviceGetTotalEnergyConsumption(nvml_device d, unsigned long long *millijoules) {
    (void)d;
    double now = now_s();
    double refreshed = update_s * (double)(long long)(now / update_s);
    *millijoules = (unsigned long long)(refreshed * watts * 1e3);
    if (setting("FAKE_NVML_RESET") && now - begin_s > 1.0) *millijoules /= 2;
    return setting("FAKE_NVML_ENERGY");
}

int nvmlDeviceGetPowerUsage(nvml_device d, unsigned *milliwatts) {
    (void)d;
    *milliwatts = (unsigned)(watts * 1e3);
    return setting("FAKE_NVML_POWER");
}

int nvmlDeviceGetFieldValues(nvml_device d, int count, struct field_value *values) {
    (void)d;
    for (int i = 0; i < count; ++i) {
        values[i].type = 3;
        values[i].code = NOT_SUPPORTED;
        if (values[i].field == 186 && values[i].scope == 0) {
            values[i].code = setting("FAKE_NVML_POWER");
            values[i].value.u = (unsigned long long)(watts * 1e3);
        }
    }
    return 0;
}

int nvmlDeviceGetClockInfo(nvml_device d, int kind, unsigned *mhz) { (void)d; *mhz = kind == 1 ? 1980 : 2619; return 0; }
int nvmlDeviceGetTemperature(nvml_device d, int sensor, unsigned *celsius) { (void)d; (void)sensor; *celsius = 45; return 0; }
int nvmlDeviceGetCurrentClocksEventReasons(nvml_device d, unsigned long long *bits) { (void)d; *bits = 0; return 0; }
int nvmlDeviceGetEnforcedPowerLimit(nvml_device d, unsigned *milliwatts) { (void)d; *milliwatts = 700000; return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(nvml_device d, unsigned *count, void *list) { (void)d; (void)list; *count = 0; return 0; }
