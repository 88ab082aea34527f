#include "memory.h"

#include <string.h>

int memory_check_vdso(struct vessel *v, const Cpr__Offer *offer, struct report *report, struct fault *f)
{
	uint8_t digest[16];
	uint32_t vdso, vvar;
	if (!offer->has_vdso_digest)
		return 0;
	if (memory_vdso_info(vessel_process(v), digest, &vdso, &vvar, f) < 0)
		return -1;
	if (offer->vdso_digest.len != sizeof(digest) || memcmp(offer->vdso_digest.data, digest, sizeof(digest)) != 0 ||
	    offer->vdso_pages != vdso || offer->vvar_pages != vvar)
		report_add(report, REPORT_BLOCKER, FAULT_KERNEL, "vDSO", "run the same kernel build on both hosts",
			   "the destination's kernel gives processes another vDSO than %s does", offer->kernel);
	return 0;
}
