// Command kubecheck reads Kubernetes manifests strictly: a field that there is not,
// or in the wrong place, is an error. It is a module of its own, as nothing else
// needs what it imports.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	appsv1 "k8s.io/api/apps/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

func main() {
	for _, path := range os.Args[1:] {
		if err := check(path); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			os.Exit(1)
		}
	}
}

func check(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for i, doc := range bytes.Split(text, []byte("\n---\n")) {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &kind); err != nil {
			return err
		}
		into := map[string]any{"apps/v1 Deployment": &appsv1.Deployment{}, "policy/v1 PodDisruptionBudget": &policyv1.PodDisruptionBudget{}}[kind.APIVersion+" "+kind.Kind]
		if into == nil {
			return fmt.Errorf("document %d: %s %s is not known here", i+1, kind.APIVersion, kind.Kind)
		}
		if err := yaml.UnmarshalStrict(doc, into); err != nil {
			return fmt.Errorf("document %d: %w", i+1, err)
		}
		if d, is := into.(*appsv1.Deployment); is {
			if err := outlast(d); err != nil {
				return fmt.Errorf("document %d: %w", i+1, err)
			}
		}
	}
	return nil
}

// outlast: the pod must not be killed while its workers drain, and an old one must
// not go before a new one is there.
func outlast(d *appsv1.Deployment) error {
	pod := d.Spec.Template.Spec
	if pod.TerminationGracePeriodSeconds == nil || *pod.TerminationGracePeriodSeconds < 30 {
		return errors.New("terminationGracePeriodSeconds: workers drain for up to 25 s by default, after preStop")
	}
	if r := d.Spec.Strategy.RollingUpdate; r == nil || r.MaxUnavailable == nil || r.MaxUnavailable.IntValue() != 0 {
		return errors.New("maxUnavailable: new pods must be ready before old ones go")
	}
	return nil
}
