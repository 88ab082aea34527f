#!/bin/sh
# A folder includes only itself and the folders below it (the include path sees to project headers; this looks at
# libraries): engine knows no libevent, no OpenSSL; transport nothing of processes; proto neither.
set -eu
cd "$(dirname "$0")/.."
bad=0
deny() { # folder, pattern, why
	if grep -rnE "^[[:space:]]*#[[:space:]]*include[[:space:]]*[<\"]($2)" "$1" --include='*.c' --include='*.h'; then
		echo "$1 must not include these: $3"
		bad=1
	fi
}
deny engine 'event2/|event\.h|openssl/|curl/|json-c/|link\.h|frame\.h|ring\.h|tls\.h|handoff|warden' 'the engine knows Linux and nothing of peers, loops or policy'
deny transport 'event2/|event\.h|sys/ptrace|process\.h|remote\.h|vessel\.h|netlink/|nftables/|handoff|warden' 'transport moves bytes and knows nothing of processes'
deny proto 'event2/|event\.h|openssl/|sys/ptrace|netlink/|nftables/|process\.h|link\.h|handoff' 'proto is what all parts agree on'
# Registers have their names in engine/arch only.
if grep -rnE '\b(orig_rax|user_regs_struct|rip\b.*regs|fs_base)\b' engine agent transport proto --include='*.c' --include='*.h' | grep -v '^engine/arch/'; then
	echo "registers are named in engine/arch only"
	bad=1
fi
[ $bad = 0 ] && echo "ok - layers" || echo "not ok - layers"
exit $bad
