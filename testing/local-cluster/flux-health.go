// What Flux makes of resources, by Flux's own packages: reads {"expressions": {…}, "objects": […]} from standard input and
// prints a line for each object, what kstatus says and what the healthCheckExprs say.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var input struct {
		Expressions kustomize.HealthCheckExpressions `json:"expressions"`
		Objects     []map[string]any                 `json:"objects"`
	}
	// Kubernetes' own decoder, which keeps integers as integers.
	if err := json.Unmarshal(text, &input); err != nil {
		return err
	}
	evaluator, err := cel.NewStatusEvaluator(&input.Expressions)
	if err != nil {
		return err
	}
	for _, object := range input.Objects {
		resource := &unstructured.Unstructured{Object: object}
		plain, err := status.Compute(resource)
		if err != nil {
			return fmt.Errorf("kstatus of %s: %w", resource.GetName(), err)
		}
		// What can't be evaluated, such as conditions that are not there yet, Flux waits for.
		evaluated, err := evaluator.Evaluate(context.Background(), resource)
		if err != nil {
			evaluated = &status.Result{Status: status.UnknownStatus}
		}
		fmt.Println(plain.Status, evaluated.Status)
	}
	return nil
}
