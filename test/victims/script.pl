# A Perl program: hashes, regular expressions, signals and files; checks itself.
use strict;
use warnings;
use Time::HiRes qw(usleep setitimer ITIMER_REAL);

my $d = $ARGV[0];
my ($failed, $n, $ticks) = ('', 0, 0);

sub put {
	my ($name, $text) = @_;
	open(my $f, '>', "$d/$name.tmp") or exit 3;
	print $f $text;
	close $f;
	rename "$d/$name.tmp", "$d/$name";
}

$SIG{ALRM} = sub { $ticks++ };
setitimer(ITIMER_REAL, 0.02, 0.02);
put('ready', 1);
my %h;
until (-e "$d/stop") {
	for my $i (1 .. 200) {
		$n++;
		my $k = 'k' . ($n % 5000);
		$failed ||= "hash $k" if exists $h{$k} && $h{$k} !~ /^v(\d+)$/;
		$failed ||= "value $k" if exists $h{$k} && ($h{$k} =~ /^v(\d+)$/)[0] % 5000 != $n % 5000;
		$h{$k} = "v$n";
	}
	put('steps', $n);
	usleep(3000);
}
$failed ||= 'no timer ticks' unless $ticks;
put('result', $failed ? "FAIL: $failed" : 'PASS');
